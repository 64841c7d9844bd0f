"""Pictures on their way in: decoded in processes of their own, cut to size, read as masks, fetched from elsewhere."""
