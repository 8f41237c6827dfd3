"""Videos: time stamps, key frames, the readers that find the frames of a clip, and the process that decodes them."""
