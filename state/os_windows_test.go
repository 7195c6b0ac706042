package state

// systemChildren adds the children that only this system can run: none.
func systemChildren(map[string]func(dir string)) {}
