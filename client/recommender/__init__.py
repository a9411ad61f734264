"""What a partner recommends to its own users: from delivered models and its own data, on its own machines."""
