"""Three workflows on the public client, a file each: a coach, a livestream's copilot, a character."""
