"""What a core or a chip is: its peak, its allocator, its compiler's options."""
