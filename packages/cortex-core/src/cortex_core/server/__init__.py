"""What both daemons need to serve HTTP; the one room of core that does IO."""
