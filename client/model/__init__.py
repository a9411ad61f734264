"""The model of one domain: text encoder, interest encoder, head and per-user objective."""
