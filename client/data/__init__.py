"""A partner's own files on their way in: interactions, catalogue, links, histories."""
