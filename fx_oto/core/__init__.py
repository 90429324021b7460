"""The foundation of every room: errors, what is known about a graph, tables, restoring models."""
