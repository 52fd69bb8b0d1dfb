"""From raw slides to a data set: patches, gene choice, folds by group."""
