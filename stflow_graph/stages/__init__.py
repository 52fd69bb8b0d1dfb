"""One public function a command."""
