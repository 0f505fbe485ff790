"""A model with weights, looked through: accuracy, pictures, class names, compiled functions."""
