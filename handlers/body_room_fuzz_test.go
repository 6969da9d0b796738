package handlers_test

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/handlers"
)

const (
	fuzzedRoom  = 1 << 20
	fuzzedSteps = 200 // of one input
)

// sender sends one body. It goes through a connection in memory, whose deadlines are real.
type sender struct {
	handlers.Body

	conn    net.Conn
	known   bool
	sending bool
	broken  bool // the sender disconnects before the end
	arrived bool // the body is complete, and is being verified
	over    bool // its room was released
	lost    bool // it was evicted
}

// read returns the reader of the body at the receiving end.
func (s *sender) read(from net.Conn) io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		n, err := from.Read(p)
		if err == io.EOF && s.broken { //nolint:errorlint // a pipe does not wrap it
			err = io.ErrUnexpectedEOF
		}
		return n, err
	})
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// traffic is the state of the room after a sequence of steps.
type traffic struct {
	t       *testing.T
	room    handlers.Room
	senders []*sender
}

// begin starts one more body: from one of four sites, of two addresses each, of which one may be known.
func (f *traffic) begin(from byte) {
	here, there := net.Pipe()
	s := &sender{conn: there, known: from&0x10 != 0}
	s.Body = f.room.NewBody(here, netip.AddrFrom4([4]byte{192, 0, from & 3, from >> 2 & 1}), s.known)
	most := int64(64<<10) << (from >> 5 & 3) // 64 KiB to 512 KiB
	f.senders = append(f.senders, s)
	go func() {
		if s.Receive(io.LimitReader(s.read(here), most), most) == nil {
			s.arrived = true
			return
		}
		s.over = true
		_ = here.Close()
	}()
}

// step does one thing: a body begins, sends more, ends, breaks off or is verified, or time passes.
func (f *traffic) step(what, with byte) {
	if what%8 == 0 {
		f.begin(with)
		return
	}
	if what%8 == 1 {
		time.Sleep(time.Duration(with) * 20 * time.Millisecond) //nolint:forbidigo // of a clock that a bubble moves
		return
	}
	if len(f.senders) == 0 {
		return
	}
	switch s := f.senders[int(with)%len(f.senders)]; what % 8 {
	case 2:
		s.broken = !s.arrived && !s.over
		_ = s.conn.Close()
	case 3:
		_ = s.conn.Close()
	case 4:
		if s.arrived {
			s.Release()
			s.over = true
		}
	default:
		if s.sending { // the other side does not read it
			return
		}
		s.sending = true
		part := make([]byte, int(what)<<10) // up to 255 KiB
		go func() {
			_, _ = s.conn.Write(part)
			s.sending = false
		}()
	}
}

// check compares what is held with its limits, and each evicted upload with the one that it was evicted for.
func (f *traffic) check(what, with byte) {
	f.t.Helper()
	bodies := make([]handlers.Body, len(f.senders))
	for i, s := range f.senders {
		bodies[i] = s.Body
	}
	if _, err := f.room.Check(bodies); err != nil {
		f.t.Fatalf("after %d %d: %v", what, with, err)
	}
	for i, s := range f.senders {
		if s.lost || !s.Lost() {
			continue
		}
		s.lost = true
		by := int(with) % len(f.senders)
		switch {
		case what%8 < 5:
			f.t.Fatalf("body %d gave way, and nothing had arrived", i)
		case s.arrived:
			f.t.Fatalf("body %d gave way although it was there", i)
		case s.known && !f.senders[by].known:
			f.t.Fatalf("body %d of a known address gave way to body %d of a stranger", i, by)
		}
	}
}

// end ends all bodies, and checks that all room is released.
func (f *traffic) end() {
	f.t.Helper()
	for _, s := range f.senders {
		_ = s.conn.Close()
	}
	synctest.Wait()
	bodies := make([]handlers.Body, len(f.senders))
	for i, s := range f.senders {
		s.Release()
		bodies[i] = s.Body
	}
	if held, err := f.room.Check(bodies); held != 0 || err != nil {
		f.t.Fatalf("%d bytes are held after the end: %v", held, err)
	}
}

// FuzzRoom has bodies begin, arrive, stop, end and break off in any order, from several sites. They never hold more
// than the total room, and the count is right after each step. A complete body is not evicted. A body of a known
// address is not evicted for one of an unknown address. All room is released at the end.
func FuzzRoom(f *testing.F) {
	f.Add([]byte{0, 0x00, 0, 0x01, 255, 0, 255, 1, 1, 100, 4, 0, 3, 1})
	f.Fuzz(func(t *testing.T, steps []byte) {
		steps = steps[:min(len(steps), 2*fuzzedSteps)] // more adds nothing
		synctest.Test(t, func(t *testing.T) {
			f := &traffic{t: t, room: handlers.NewRoom(fuzzedRoom)}
			for i := 0; i+1 < len(steps); i += 2 {
				f.step(steps[i], steps[i+1])
				synctest.Wait()
				f.check(steps[i], steps[i+1])
			}
			f.end()
		})
	})
}
