"""What a pipeline's call goes through: arguments, callbacks, masks, the run as its scheduler steps it."""
