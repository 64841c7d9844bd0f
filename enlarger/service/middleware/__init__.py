"""Between the network and the routes: who may ask, how much, and how long it may take to say it."""
