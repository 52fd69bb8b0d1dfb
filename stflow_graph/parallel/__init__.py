"""Several processes at one command: ``torchrun`` starts them, its store tells them apart."""
