"""One domain's private side: its data, its model, its training, and the gate everything passes on its way out."""
