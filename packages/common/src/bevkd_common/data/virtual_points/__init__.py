"""Virtual points (MVP): points lifted from instance masks to LiDAR depths."""
