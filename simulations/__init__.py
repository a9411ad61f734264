"""The whole federation on one desk: the same client and server code, on synthetic or own data."""
