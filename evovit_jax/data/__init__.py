"""From TFDS or a folder to batches: decoding and geometry on the host, mixing on the device."""
