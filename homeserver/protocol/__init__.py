"""What the Matrix specification defines as a computation: pure functions, values in and values out."""
