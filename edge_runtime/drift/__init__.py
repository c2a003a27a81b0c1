"""Whether readings and answers still look like those of the training, by the reference in the bundle."""
