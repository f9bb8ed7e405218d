"""Which sites of a model hurt, what each would cost in float, and the smallest set that would have to be."""
