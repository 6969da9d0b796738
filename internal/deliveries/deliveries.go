// Package deliveries keeps deliveries as they arrived, so that an operator can have one explained later.
//
// A [Folder] keeps them in files below the state folder, one for each delivery, by the id of its request. [Read] reads
// one, also in another process, and [Prune] removes those that are too old. The files have bodies and credentials of
// senders, so they are for the user of the server alone.
//
// Those of senders without a valid credential are apart, few and small: they push out none of the others. A delivery
// that cannot be kept is only not kept: nothing is refused for it. Files are not synced, so a loss of power may leave
// one that is not whole; Read says so.
package deliveries

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"sallyport/internal/pathsafe"
)

// Delivery is one request to a hook.
type Delivery struct {
	Request string      `json:"request"` // its id
	At      time.Time   `json:"at"`      // when its body was complete
	Address string      `json:"address"` // of the client
	Method  string      `json:"method"`
	Host    string      `json:"host"`
	URL     string      `json:"url"`
	Header  http.Header `json:"header"`
	Length  int         `json:"length"` // of the body
	Body    []byte      `json:"-"`      // follows the first line of the file
}

// What is kept at most.
const (
	mostVerified        = 1000
	mostVerifiedBytes   = 256 << 20
	mostUnverified      = 100
	mostUnverifiedBytes = 16 << 20
	mostUnverifiedBody  = 1 << 20
)

// The folders below the state folder.
const (
	verifiedFolder   = "deliveries/verified"
	unverifiedFolder = "deliveries/unverified"
)

// Folder keeps deliveries of one server.
type Folder struct {
	verified, unverified *shelf
}

// NewFolder returns the folder below a state folder. It makes no file.
func NewFolder(state string) *Folder {
	return &Folder{
		verified:   &shelf{dir: filepath.Join(state, verifiedFolder), most: mostVerified, mostBytes: mostVerifiedBytes},
		unverified: &shelf{dir: filepath.Join(state, unverifiedFolder), most: mostUnverified, mostBytes: mostUnverifiedBytes},
	}
}

// Keep writes a delivery, and removes the oldest if there are too many then. Of those that are not verified, it keeps
// none with a large body.
func (f *Folder) Keep(d *Delivery, isVerified bool) error {
	if isVerified {
		return f.verified.keep(d)
	}
	if len(d.Body) > mostUnverifiedBody {
		return nil
	}
	return f.unverified.keep(d)
}

// shelf is a folder of files with a bound. It knows the files that it has written, and those that it found first.
type shelf struct {
	dir       string
	most      int
	mostBytes int64

	mu     sync.Mutex
	isRead bool
	files  []file // oldest first; some may have been pruned
	bytes  int64
}

type file struct {
	name     string
	size     int64
	modified time.Time
}

func (s *shelf) keep(d *Delivery) error {
	d.Length = len(d.Body)
	head, err := json.Marshal(d)
	if err != nil {
		return err
	}
	content := append(append(head, '\n'), d.Body...)
	if int64(len(content)) > s.mostBytes {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return err
	}
	if !s.isRead {
		if s.files, err = listFiles(root); err != nil {
			return errors.Join(err, root.Close())
		}
		s.isRead = true
		for _, one := range s.files {
			s.bytes += one.size
		}
	}
	if err := pathsafe.ReplaceFile(root, d.Request, content, 0o600, pathsafe.Unsynced); err != nil {
		return errors.Join(err, root.Close())
	}
	s.files = append(s.files, file{name: d.Request, size: int64(len(content))})
	s.bytes += int64(len(content))
	for len(s.files) > s.most || s.bytes > s.mostBytes {
		err = errors.Join(err, removeFile(root, s.files[0].name))
		s.bytes -= s.files[0].size
		s.files = s.files[1:]
	}
	return errors.Join(err, root.Close())
}

// listFiles returns the files of a folder, oldest first.
func listFiles(root *os.Root) ([]file, error) {
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return nil, err
	}
	var files []file
	for _, entry := range entries {
		info, err := entry.Info()
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed since
		case err != nil:
			return nil, err
		case info.Mode().IsRegular():
			files = append(files, file{info.Name(), info.Size(), info.ModTime()})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return a.modified.Compare(b.modified) })
	return files, nil
}

func removeFile(root *os.Root, name string) error {
	if err := root.Remove(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Prune removes the deliveries below a state folder that were kept before a time.
func Prune(state string, before time.Time) error {
	return errors.Join(pruneFolder(filepath.Join(state, verifiedFolder), before),
		pruneFolder(filepath.Join(state, unverifiedFolder), before))
}

func pruneFolder(dir string, before time.Time) error {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	files, err := listFiles(root)
	for _, one := range files {
		if one.modified.Before(before) {
			err = errors.Join(err, removeFile(root, one.name))
		}
	}
	return errors.Join(err, root.Close())
}

// ErrNotKept is the error for a delivery that is not kept, or not any more.
var ErrNotKept = errors.New("the delivery is not kept")

var requestID = regexp.MustCompile(`^[A-Z2-7]{26}$`)

// Read returns a delivery that is kept below a state folder.
func Read(state, request string) (*Delivery, error) {
	if !requestID.MatchString(request) {
		return nil, fmt.Errorf("%.40q is not the id of a request, which has 26 letters and digits", request)
	}
	for _, folder := range []string{verifiedFolder, unverifiedFolder} {
		content, err := os.ReadFile(filepath.Join(state, folder, request))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		head, body, _ := bytes.Cut(content, []byte("\n"))
		d := new(Delivery)
		if err := json.Unmarshal(head, d); err != nil || d.Length != len(body) {
			return nil, fmt.Errorf("the file of the delivery %s is not whole", request)
		}
		d.Body = body
		return d, nil
	}
	return nil, ErrNotKept
}
