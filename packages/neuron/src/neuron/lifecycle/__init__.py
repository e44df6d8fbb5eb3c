"""What a replica may do next, and which memory it may have: decisions without IO."""
