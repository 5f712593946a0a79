"""The machine: the compiler, devices and meshes, several processes, memory, signals and files."""
