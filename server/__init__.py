"""The coordinator: it averages transfer layers and never sees a row."""
