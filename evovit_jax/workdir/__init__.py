"""All that lies in a work directory: checkpoints, metrics, the config, the lock."""
