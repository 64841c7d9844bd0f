"""The workshop in which the bundled model is trained."""
