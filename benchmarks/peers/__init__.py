"""Other implementations; foreign packages are imported when a variant is built, never before."""
