"""The quality of samples and likelihoods, with the error of each number."""
