"""What every room stands on: errors, what is known of a graph, tables, and leaving models as they were."""
