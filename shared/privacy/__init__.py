"""The permanent record of what was spent on whom, and the accountants that read it."""
