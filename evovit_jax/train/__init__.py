"""What happens between two steps of a training, and what a step is made of."""
