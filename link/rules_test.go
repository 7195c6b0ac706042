package link

import (
	"slices"
	"testing"
	"testing/synctest"

	"cepa/cell"
)

// Circuit IDs as the two sides choose them.
const (
	theirs = cell.InitiatorBit // the initiator's, in tests the raw peer's
	ours   = 0
)

// TestRules breaks each rule in turn. The raw peer opened the connection; the
// circuits it has then are: theirs+1 open, theirs+2 offered without CREATED,
// theirs+3 destroyed by us, theirs+4 destroyed by itself; ours+1 open, ours+2
// pending, ours+3 destroyed by us while pending.
func TestRules(t *testing.T) {
	spoil := func(c []byte, at int) []byte {
		c = slices.Clone(c)
		c[at] ^= 1
		return c
	}
	last := cellSize - 1
	created := func(id uint32) []byte { return rawCell(id, cell.Created) }
	for name, c := range map[string]struct {
		rule  Rule // "" when lawful
		cells [][]byte
	}{
		"padding":                      {"", [][]byte{rawCell(0, cell.Padding)}},
		"padding with a circuit":       {RuleLinkCircuit, [][]byte{rawCell(1, cell.Padding)}},
		"padding not zero":             {RuleZero, [][]byte{spoil(rawCell(0, cell.Padding), last)}},
		"padding not zero at once":     {RuleZero, [][]byte{spoil(rawCell(0, cell.Padding), 5)}},
		"rekey":                        {"", [][]byte{rawCell(0, cell.Padding), rawCell(0, cell.Rekey)}},
		"rekey with a circuit":         {RuleLinkCircuit, [][]byte{rawCell(theirs+1, cell.Rekey)}},
		"rekey not zero":               {RuleZero, [][]byte{spoil(rawCell(0, cell.Rekey), 700)}},
		"rekey not last":               {RuleRekeyLast, [][]byte{rawCell(0, cell.Rekey), rawCell(0, cell.Padding)}},
		"rekey twice":                  {RuleRekeyLast, [][]byte{rawCell(0, cell.Rekey), rawCell(0, cell.Rekey)}},
		"auth again":                   {RuleAuthOnce, [][]byte{rawCell(0, cell.Auth)}},
		"auth on a circuit":            {RuleAuthOnce, [][]byte{rawCell(1, cell.Auth)}},
		"command 7":                    {RuleCommand, [][]byte{rawCell(theirs+1, 7)}},
		"command 255":                  {RuleCommand, [][]byte{rawCell(0, 255)}},
		"create on 0":                  {RuleCircuitZero, [][]byte{rawCreate(0)}},
		"created on 0":                 {RuleCircuitZero, [][]byte{created(0)}},
		"relay on 0":                   {RuleCircuitZero, [][]byte{rawCell(0, cell.Relay)}},
		"destroy on 0":                 {RuleCircuitZero, [][]byte{rawCell(0, cell.Destroy)}},
		"create":                       {"", [][]byte{rawCreate(theirs + 5)}},
		"create with a gap":            {"", [][]byte{rawCreate(theirs + 9), rawCreate(theirs + 1000), rawCreate(1<<32 - 1)}},
		"create on our side":           {RuleSide, [][]byte{rawCreate(ours + 7)}},
		"create again":                 {RuleOrder, [][]byte{rawCreate(theirs + 1)}},
		"create after destroy":         {RuleOrder, [][]byte{rawCreate(theirs + 3)}},
		"create after own destroy":     {RuleOrder, [][]byte{rawCreate(theirs + 4)}},
		"create below":                 {RuleOrder, [][]byte{rawCreate(theirs + 9), rawCreate(theirs + 8)}},
		"create after the last":        {RuleOrder, [][]byte{rawCreate(1<<32 - 1), rawCreate(1<<32 - 2)}},
		"create with tail":             {RuleBody, [][]byte{spoil(rawCreate(theirs+5), last)}},
		"create with index 0":          {RuleBody, [][]byte{spoil(rawCreate(theirs+5), 5)}},
		"created":                      {"", [][]byte{created(ours + 2)}},
		"created with tail":            {RuleBody, [][]byte{spoil(created(ours+2), last)}},
		"created twice":                {RuleCreated, [][]byte{created(ours + 2), created(ours + 2)}},
		"created on open":              {RuleCreated, [][]byte{created(ours + 1)}},
		"created from the wrong side":  {RuleCreated, [][]byte{created(theirs + 1)}},
		"created on offered":           {RuleCreated, [][]byte{created(theirs + 2)}},
		"created late":                 {"", [][]byte{created(ours + 3)}},
		"created unknown":              {RuleUnknown, [][]byte{created(ours + 4)}},
		"created gone":                 {RuleUnknown, [][]byte{created(theirs + 4)}},
		"relay":                        {"", [][]byte{rawCell(theirs+1, cell.Relay), rawCell(ours+1, cell.Relay)}},
		"relay late":                   {"", [][]byte{rawCell(theirs+3, cell.Relay), rawCell(ours+3, cell.Relay)}},
		"relay on pending":             {RuleRelay, [][]byte{rawCell(ours+2, cell.Relay)}},
		"relay on offered":             {RuleRelay, [][]byte{rawCell(theirs+2, cell.Relay)}},
		"relay at once after create":   {RuleRelay, [][]byte{rawCreate(theirs + 5), rawCell(theirs+5, cell.Relay)}},
		"relay unknown":                {RuleUnknown, [][]byte{rawCell(theirs+5, cell.Relay)}},
		"relay on our next":            {RuleUnknown, [][]byte{rawCell(ours+4, cell.Relay)}},
		"relay after own destroy":      {RuleUnknown, [][]byte{rawCell(theirs+4, cell.Relay)}},
		"relay in a run after destroy": {RuleUnknown, [][]byte{rawCell(theirs+1, cell.Relay), rawCell(theirs+1, cell.Destroy), rawCell(theirs+1, cell.Relay)}},
		"destroy":                      {"", [][]byte{rawCell(theirs+1, cell.Destroy, 6), rawCell(ours+1, cell.Destroy)}},
		"destroy offered":              {"", [][]byte{rawCell(theirs+2, cell.Destroy)}},
		"destroy pending":              {"", [][]byte{rawCell(ours+2, cell.Destroy, 5)}},
		"destroy answers":              {"", [][]byte{rawCell(ours+3, cell.Destroy), rawCell(theirs+3, cell.Destroy, 1)}},
		"destroy answers twice":        {RuleUnknown, [][]byte{rawCell(ours+3, cell.Destroy), rawCell(ours+3, cell.Destroy)}},
		"destroy twice":                {RuleUnknown, [][]byte{rawCell(ours+1, cell.Destroy), rawCell(ours+1, cell.Destroy)}},
		"destroy again":                {RuleUnknown, [][]byte{rawCell(theirs+4, cell.Destroy)}},
		"destroy unknown":              {RuleUnknown, [][]byte{rawCell(theirs+5, cell.Destroy)}},
		"destroy with tail":            {RuleBody, [][]byte{spoil(rawCell(theirs+1, cell.Destroy), last)}},
		"destroy with reason 7":        {RuleBody, [][]byte{rawCell(theirs+1, cell.Destroy, 7)}},
		"late after the answer":        {RuleUnknown, [][]byte{rawCell(ours+3, cell.Destroy), rawCell(ours+3, cell.Relay)}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				raw, cfg := clientConfig(), relayConfig(t, 2)
				var offered []*Circuit
				cfg.OnCreate = func(c *Circuit, _ []byte) { offered = append(offered, c) }
				p, l := newRaw(t, true, raw, cfg)

				p.send(rawCreate(theirs+1), rawCreate(theirs+2), rawCreate(theirs+3), rawCreate(theirs+4))
				p.send(rawCell(theirs+4, cell.Destroy))
				synctest.Wait()
				acceptCircuit(t, offered[0], new(recorder), cfg.Pool)
				offered[2].Destroy(cell.ReasonRefused)
				var own []*Circuit
				for range 3 {
					own = append(own, openCircuit(t, l, new(recorder), cfg.Pool))
				}
				own[2].Destroy(cell.ReasonFinished)
				p.send(created(ours + 1))
				synctest.Wait()
				if l.Err() != nil {
					t.Fatalf("the circuits before the test ended the link: %v", l.Err())
				}

				p.send(c.cells...)
				synctest.Wait()
				if c.rule == "" && l.Err() != nil || rule(l) != c.rule {
					t.Errorf("ended with %v, want %q", l.Err(), c.rule)
				}
				l.Close()
				checkReturned(t, cfg)
			})
		})
	}
}

// TestInitiatorRules: what differs when we opened the connection.
func TestInitiatorRules(t *testing.T) {
	for name, c := range map[string]struct {
		rule     Rule
		onCreate bool
		id       uint32
	}{
		"lowest":      {"", true, 1},
		"highest":     {"", true, 1<<31 - 1},
		"our side":    {RuleSide, true, cell.InitiatorBit + 1},
		"not allowed": {RuleCreateAllowed, false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				cfg := clientConfig()
				if c.onCreate {
					cfg.OnCreate = func(c *Circuit, _ []byte) {
						if id := c.ID(); id&cell.InitiatorBit != 0 {
							t.Errorf("ID %#x", id)
						}
					}
				}
				p, l := newRaw(t, false, relayConfig(t, 2), cfg)
				own := openCircuit(t, l, new(recorder), cfg.Pool)
				if own.ID() != cell.InitiatorBit+1 {
					t.Errorf("our first ID is %#x", own.ID())
				}
				p.send(rawCreate(c.id))
				synctest.Wait()
				if rule(l) != c.rule {
					t.Errorf("ended with %v, want %q", l.Err(), c.rule)
				}
				l.Close()
			})
		})
	}
}
