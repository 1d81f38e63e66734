"""How good a backbone is: kNN, linear probe and fine-tuning by number of labels, and health without labels."""
