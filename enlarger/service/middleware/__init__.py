"""Between the network and the routes: who may send requests, how large they may be, and how long they may take."""
