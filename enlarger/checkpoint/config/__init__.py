"""Between JSON files and the dataclasses that networks and samplers are made of."""
