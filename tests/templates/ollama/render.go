// Renders every *.gotmpl beside it over conversations.json with Go's own text/template and writes golden.json.
// Run it after a template or a conversation was changed: go run render.go
// It gives templates what Ollama gives them, but for two things that the translation means to do otherwise: JSON is
// written with a space after colons and commas, and with .Messages neighbours of one role stay apart.
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"text/template/parse"
)

type Arguments map[string]any

type Function struct {
	Name        string
	Description string
	Parameters  Parameters
	Arguments   Arguments
	raw         json.RawMessage
}

type Parameters struct {
	Type       string
	Required   []string
	Properties map[string]Property
	raw        json.RawMessage
}

type Property struct {
	Type        string
	Description string
	Enum        []string
}

type Tool struct {
	Type     string
	Function Function
	raw      json.RawMessage
}

type Tools []Tool

type Call struct {
	ID       string
	Function Function
}

type Message struct {
	Role       string
	Content    string
	Thinking   string `json:"reasoning_content"`
	ToolName   string `json:"name"`
	ToolCallID string `json:"tool_call_id"`
	ToolCalls  []Call `json:"tool_calls"`
}

type Conversation struct {
	Messages []*Message
	Tools    Tools
	Thinking *bool `json:"enable_thinking"`
}

func (f *Function) UnmarshalJSON(text []byte) error {
	type plain Function
	f.raw = append(json.RawMessage{}, text...)
	return json.Unmarshal(text, (*plain)(f))
}

func (p *Parameters) UnmarshalJSON(text []byte) error {
	type plain Parameters
	p.raw = append(json.RawMessage{}, text...)
	return json.Unmarshal(text, (*plain)(p))
}

func (t *Tool) UnmarshalJSON(text []byte) error {
	type plain Tool
	t.raw = append(json.RawMessage{}, text...)
	return json.Unmarshal(text, (*plain)(t))
}

func (f Function) MarshalJSON() ([]byte, error)   { return f.raw, nil }
func (p Parameters) MarshalJSON() ([]byte, error) { return p.raw, nil }
func (t Tool) MarshalJSON() ([]byte, error)       { return t.raw, nil }
func (f Function) String() string                 { return spaced(f) }
func (p Parameters) String() string               { return spaced(p) }
func (t Tool) String() string                     { return spaced(t) }
func (t Tools) String() string                    { return spaced(t) }
func (a Arguments) String() string                { return spaced(a) }

// spaced is JSON as Python writes it; the values here have no colon or comma followed by a quote inside of strings.
func spaced(value any) string {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	check(encoder.Encode(value))
	var spread strings.Builder
	inside, escaped := false, false
	for _, char := range strings.TrimSuffix(out.String(), "\n") {
		spread.WriteRune(char)
		if char == '"' && !escaped {
			inside = !inside
		}
		escaped = char == '\\' && !escaped
		if !inside && (char == ':' || char == ',') {
			spread.WriteByte(' ')
		}
	}
	return spread.String()
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func render(text string, told Conversation) string {
	parsed := template.Must(template.New("").Option("missingkey=zero").Funcs(template.FuncMap{"json": spaced}).Parse(text))
	common := map[string]any{"Think": told.Thinking != nil && *told.Thinking, "IsThinkSet": told.Thinking != nil, "Suffix": ""}
	if strings.Contains(text, ".Messages") {
		var system []string
		for _, message := range told.Messages {
			if message.Role == "system" {
				system = append(system, message.Content)
			}
		}
		common["System"], common["Messages"] = strings.Join(system, "\n\n"), told.Messages
		common["Tools"], common["Response"] = told.Tools, ""
		return executed(parsed, common)
	}
	if !strings.Contains(text, ".Response") {
		more := template.Must(template.New("").Parse("{{ .Response }}"))
		parsed.Tree.Root.Nodes = append(parsed.Tree.Root.Nodes, more.Tree.Root.Nodes...)
	}
	return turns(parsed, common, merged(told.Messages))
}

func turns(parsed *template.Template, common map[string]any, messages []*Message) string {
	var out strings.Builder
	common["System"], common["Prompt"], common["Response"] = "", "", ""
	flush := func() {
		out.WriteString(executed(parsed, common))
		common["System"], common["Prompt"], common["Response"] = "", "", ""
	}
	for _, message := range messages {
		switch message.Role {
		case "system":
			if common["Prompt"] != "" || common["Response"] != "" {
				flush()
			}
			common["System"] = message.Content
		case "user":
			if common["Response"] != "" {
				flush()
			}
			common["Prompt"] = message.Content
		case "assistant":
			common["Response"] = message.Content
		}
	}
	cut(parsed.Tree.Root)
	out.WriteString(executed(parsed, common))
	return out.String()
}

func merged(messages []*Message) []*Message {
	var kept []*Message
	for _, message := range messages {
		if last := len(kept) - 1; last >= 0 && kept[last].Role == message.Role && message.Role != "tool" {
			kept[last] = &Message{Role: message.Role, Content: kept[last].Content + "\n\n" + message.Content}
		} else {
			kept = append(kept, message)
		}
	}
	return kept
}

// cut removes what follows the first response that is printed; it says whether there was one.
func cut(list *parse.ListNode) bool {
	if list == nil {
		return false
	}
	for place, node := range list.Nodes {
		found := false
		switch node := node.(type) {
		case *parse.ActionNode:
			found = strings.Contains(node.String(), ".Response")
		case *parse.IfNode:
			found = cut(node.List) || cut(node.ElseList)
		case *parse.WithNode:
			found = cut(node.List) || cut(node.ElseList)
		}
		if found {
			list.Nodes = list.Nodes[:place+1]
			return true
		}
	}
	return false
}

func executed(parsed *template.Template, values map[string]any) string {
	var out strings.Builder
	check(parsed.Execute(&out, values))
	return out.String()
}

func main() {
	text, err := os.ReadFile("conversations.json")
	check(err)
	var conversations []Conversation
	check(json.Unmarshal(text, &conversations))
	golden := map[string][]string{}
	paths, _ := filepath.Glob("*.gotmpl")
	for _, path := range paths {
		source, err := os.ReadFile(path)
		check(err)
		name := strings.TrimSuffix(path, ".gotmpl")
		for _, told := range conversations {
			golden[name] = append(golden[name], render(string(source), told))
		}
	}
	file, err := os.Create("golden.json")
	check(err)
	encoder := json.NewEncoder(file)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	check(encoder.Encode(golden))
}
