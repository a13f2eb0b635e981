"""Data preparation, reference models and the training loop behind the ``sede`` command."""
