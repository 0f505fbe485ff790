"""A network with its weights as one file for other programs: StableHLO, ONNX, a saved model."""
