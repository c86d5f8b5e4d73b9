"""Tables of captioned images with regions added, for programs that have a pipeline of their own."""
