"""More than one machine: a Ray cluster, what is kept behind URIs, and a batch over both."""
