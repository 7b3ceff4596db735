"""The layers of a network seen from its kernel: what each does with its parameters, and the term that this makes."""
