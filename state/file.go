package state

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
)

// advice is what to do about a damaged file that the program can do without.
const advice = "put back a good copy of it, or move it away to start without it"

// Read returns the content of a file of at most max bytes. Errors, besides those
// of the system: os.ErrNotExist when there is none; *CorruptError when it is
// longer or not a regular file (links are not followed); ErrName.
func (d *Dir) Read(name string, max int64) ([]byte, error) {
	b, _, err := d.read(name, max)
	return b, err
}

// read is Read that also tells about the file it read.
func (d *Dir) read(name string, max int64) ([]byte, fs.FileInfo, error) {
	if err := checkName(name); err != nil {
		return nil, nil, err
	}
	if max < 0 || max == math.MaxInt64 {
		return nil, nil, fmt.Errorf("state: reading %s: %d bytes is no bound", name, max)
	}
	if err := d.begin(); err != nil {
		return nil, nil, err
	}
	defer d.users.Done()
	file, where := path.Join(d.inside, name), d.Path(name)
	info, err := d.root.Lstat(file)
	if err != nil {
		return nil, nil, fmt.Errorf("state: reading %s: %w", where, err)
	}
	if !info.Mode().IsRegular() { // before it is opened: opening a pipe would wait
		return nil, nil, &CorruptError{where, errors.New("it is not a regular file"), advice}
	}
	f, err := d.root.Open(file)
	if err != nil {
		return nil, nil, fmt.Errorf("state: reading %s: %w", where, err)
	}
	// One byte more than allowed shows that there are too many.
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	// A file that was only read has nothing to lose when closing it fails.
	_ = f.Close()
	if err != nil {
		return nil, nil, fmt.Errorf("state: reading %s: %w", where, err)
	}
	if int64(len(b)) > max {
		return nil, nil, &CorruptError{where, fmt.Errorf("it has more than the %d bytes that it may have", max), advice}
	}
	return b, info, nil
}

// Write replaces a file, or creates it, readable by its owner only. The new
// content is made durable under another name first and then renamed, so that a
// crash at any moment, of the process or of the machine, leaves the old content
// or the new one. When Write returns nil, the new one is durable; on an error the
// old one is in place, except when the error is in the last step, which the error
// says. Data is not kept. What is not a regular file is not replaced.
func (d *Dir) Write(name string, data []byte) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := d.begin(); err != nil {
		return err
	}
	defer d.users.Done()
	file, where := path.Join(d.inside, name), d.Path(name)
	if info, err := d.root.Lstat(file); err == nil && !info.Mode().IsRegular() {
		return &CorruptError{where, errors.New("it is not a regular file"), advice}
	}
	temp := d.nextTemp()
	if err := d.writeTemp(temp, data); err != nil {
		return fmt.Errorf("state: writing %s: %w", where, err)
	}
	if err := d.root.Rename(temp, file); err != nil {
		_ = d.root.Remove(temp) // or else the next Open does
		return fmt.Errorf("state: writing %s: %w", where, err)
	}
	if err := d.sync(); err != nil {
		return fmt.Errorf("state: %s has its new content, but a power failure may still undo that: %w", where, err)
	}
	return nil
}

// writeTemp creates a file with the data, durable, or leaves nothing behind.
func (d *Dir) writeTemp(temp string, data []byte) error {
	f, err := d.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = d.root.Remove(temp) // or else the next Open does
	}
	return err
}

// Remove deletes a file, durably. There being none is an error, os.ErrNotExist;
// so is a folder, even when it is empty.
func (d *Dir) Remove(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := d.begin(); err != nil {
		return err
	}
	defer d.users.Done()
	file, where := path.Join(d.inside, name), d.Path(name)
	info, err := d.root.Lstat(file)
	if err == nil && info.IsDir() {
		err = errors.New("it is a directory")
	}
	if err == nil {
		err = d.root.Remove(file)
	}
	if err == nil {
		err = d.sync()
	}
	if err != nil {
		return fmt.Errorf("state: removing %s: %w", where, err)
	}
	return nil
}
