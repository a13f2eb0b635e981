"""What the compiler makes of every kernel; ``python -m`` this package compiles and prints it."""
