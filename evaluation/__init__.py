"""The training of the classifier, and what is measured on the test split."""
