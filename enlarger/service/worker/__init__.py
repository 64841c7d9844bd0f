"""The process that computes: it has the models, takes jobs on standard input, and says what happens on its output."""
