"""How the networks of golden files are built here, a module for each family."""
