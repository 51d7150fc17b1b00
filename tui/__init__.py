"""The neuron browser: reads run directories, never imports torch."""
