"""Where and how modules run; the models never know."""
