"""How good samples and likelihoods are, each number with its error."""
