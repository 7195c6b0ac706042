package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"unicode/utf8"
)

// maxDepth bounds how deeply JSON in a file may nest. Ours: our own nests less
// than 10 deep.
const maxDepth = 64

// envelope is the outermost object of a JSON file. Its fields are the only ones.
type envelope struct {
	Version int `json:"version"` // of the format of Data; 1 or more
	Data    any `json:"data"`
}

// versionError says that a file has a format of another version.
type versionError struct{ got, want int }

func (e *versionError) Error() string {
	return fmt.Sprintf("it has version %d, and this program knows version %d", e.got, e.want)
}

// WriteJSON writes v as JSON with a version around it, as Write does:
//
//	{"version": 1, "data": …}
//
// The version, 1 or more, is that of the format of v; whoever changes v so that
// old files read wrongly counts it up.
func (d *Dir) WriteJSON(name string, version int, v any) error {
	data, err := encodeJSON(version, v)
	if err != nil {
		return fmt.Errorf("state: writing %s: %w", name, err)
	}
	return d.Write(name, data)
}

// ReadJSON reads a file of at most max bytes that WriteJSON has written with this
// version into v, a pointer that is not nil. What v points to is replaced as a
// whole when all went well, and untouched otherwise. Besides the errors of Read,
// *CorruptError says that the file has another version or is not strictly what
// was asked for: unknown or double fields, values of other types or out of range,
// anything after the end. The file stays as it is.
func (d *Dir) ReadJSON(name string, version int, max int64, v any) error {
	target := reflect.ValueOf(v)
	if target.Kind() != reflect.Pointer || target.IsNil() {
		return fmt.Errorf("state: reading %s: %T is not a pointer to read into", name, v)
	}
	data, err := d.Read(name, max)
	if err != nil {
		return err
	}
	fresh := reflect.New(target.Type().Elem())
	if err := decodeJSON(data, version, fresh.Interface()); err != nil {
		todo := advice
		if other := (*versionError)(nil); errors.As(err, &other) && other.got > other.want {
			todo = "run the newer program that wrote it, or move it away to start without it"
		}
		return &CorruptError{d.Path(name), err, todo}
	}
	target.Elem().Set(fresh.Elem())
	return nil
}

func encodeJSON(version int, v any) ([]byte, error) {
	if version < 1 {
		return nil, fmt.Errorf("version %d is below 1", version)
	}
	data, err := json.MarshalIndent(envelope{version, v}, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(data, '\n'), nil
}

// decodeJSON looks at the version before anything else, so that a file from
// another version is told as that, and not by the first field that has changed.
func decodeJSON(data []byte, version int, v any) error {
	if !utf8.Valid(data) {
		return errors.New("it is not text in UTF-8")
	}
	// A map, as its keys are exact where those of a struct ignore case.
	var outer map[string]json.RawMessage
	if err := json.Unmarshal(data, &outer); err != nil {
		return describe(err, len(data))
	}
	var got int
	if err := json.Unmarshal(outer["version"], &got); err != nil || got < 1 {
		return errors.New("it has no version, or none that is a number above 0")
	}
	if got != version {
		return &versionError{got, version}
	}
	if err := checkKeys(data); err != nil {
		return err
	}
	inner, found := outer["data"]
	if !found || len(outer) != 2 {
		return errors.New(`it has other fields than "version" and "data"`)
	}
	decoder := json.NewDecoder(bytes.NewReader(inner))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(v); err != nil {
		return fmt.Errorf("its data is not as expected: %w", err)
	}
	return nil
}

// describe says where JSON breaks off or ceases to be JSON.
func describe(err error, size int) error {
	var syntax *json.SyntaxError
	switch {
	case size == 0:
		return errors.New("it is empty")
	case errors.As(err, &syntax) && syntax.Offset >= int64(size):
		return fmt.Errorf("its end is missing, after %d bytes: %w", size, err)
	case errors.As(err, &syntax):
		return fmt.Errorf("it is not JSON at byte %d: %w", syntax.Offset, err)
	}
	return fmt.Errorf("it is not a JSON object: %w", err)
}

// checkKeys refuses valid JSON in which an object has a key twice, of which
// encoding/json would silently take the last, and JSON that nests too deeply.
func checkKeys(data []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	// Number by number as it is written: whether it fits is for Decode to say.
	decoder.UseNumber()
	type level struct {
		keys  map[string]bool // nil for an array
		value bool            // in an object: the next token is a value
	}
	var open []level
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if delim, ok := token.(json.Delim); ok && (delim == '}' || delim == ']') {
			open = open[:len(open)-1]
			continue
		}
		if n := len(open); n > 0 && open[n-1].keys != nil {
			top := &open[n-1]
			if !top.value {
				key, _ := token.(string) // what else it might be, JSON does not allow
				if top.keys[key] {
					return fmt.Errorf("it has the field %.40q twice", key)
				}
				top.keys[key], top.value = true, true
				continue
			}
			top.value = false
		}
		switch token {
		case json.Delim('{'):
			open = append(open, level{keys: map[string]bool{}})
		case json.Delim('['):
			open = append(open, level{})
		}
		if len(open) > maxDepth {
			return fmt.Errorf("it nests more than %d deep", maxDepth)
		}
	}
}
